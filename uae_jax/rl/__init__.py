"""Policy gradients: advantages, clipped surrogates and divergences, shared by both reinforcement stages."""
