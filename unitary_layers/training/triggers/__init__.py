"""Who asks for the step: a call after backward, an optimiser that is there already, or one for the whole model."""
