"""What a job says of the capture reaches its rollout pods, field by field and with the same defaults."""

from __future__ import annotations

from tests.support.snapshots import make_job
from tlt_operator.plan.decision import rollout_config
from tlt_workloads.contract import CaptureSettings, ElementType


def test_a_job_that_says_nothing_gets_the_pods_own_defaults() -> None:
    assert rollout_config(make_job()).capture == CaptureSettings()


def test_every_field_reaches_the_pods() -> None:
    fields = {
        "maxTokensPerStep": 1000,
        "maxBytesPerStep": "64Mi",
        "maxBytes": "1Gi",
        "sampleRate": 0.5,
        "promptRows": 7,
        "elementType": "Float8",
    }
    assert rollout_config(make_job(capture=fields)).capture == CaptureSettings(
        max_tokens_per_step=1000,
        max_bytes_per_step=64 << 20,
        max_bytes=1 << 30,
        sample_rate=0.5,
        prompt_rows=7,
        element_type=ElementType.FLOAT8,
    )
