"""What a recipe will take, said before anything runs: memory, time, and what is done already."""
