"""What an RL learner needs of us: a way to hand its policy to the rollout pods through the shared store."""
