"""What the trainer costs and saves: packing, speed beside speculators' own trainer, checkpoints, starts and memory."""
