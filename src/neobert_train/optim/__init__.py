"""Which parameters are decayed, and the learning rate as a function of the step."""
