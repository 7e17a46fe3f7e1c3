"""Which of these models refuses what it should, and only that?"""

__version__ = "0.1.0"
