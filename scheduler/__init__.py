"""The scheduler: pure Python and NumPy; decides what every step holds. Loads neither torch nor Ray."""
