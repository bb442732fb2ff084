"""The engines that a simulation can run on."""
