"""Tasks in other processes: which engine starts these, here or on other machines, and what becomes of a task that dies."""
