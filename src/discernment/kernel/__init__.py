"""The gradient kernel engine: K(x', x) = J(x') J(x)^T of prompts, exact, without ever holding a gradient."""
