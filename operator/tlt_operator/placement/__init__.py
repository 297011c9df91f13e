"""How a trainer pod gets at the devices of a rollout pod: one module per strategy, all behind `Strategy`."""
