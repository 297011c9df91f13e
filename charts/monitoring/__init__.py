"""Makes what monitoring reads: the dashboard from `dashboard.py`, plain rule files from the chart's alerts."""
