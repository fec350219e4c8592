"""The parts of a training run: configuration, phases, state, what is written. `training.training_loop` runs them."""
