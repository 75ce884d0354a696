"""TraceLens in pytest: a test that makes a NaN fails, and says where it began."""
