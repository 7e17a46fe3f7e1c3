"""Why a model over-refuses: similarity, separability, learning dynamics, Proposition 1, and the finding."""
