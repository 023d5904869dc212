"""How weights are updated: groups of parameters, optimisers, and the learning rate of every step."""
