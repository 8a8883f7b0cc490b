"""The ablations in `configs/ablations`, trained, measured, and put into one table: `uae bench ablate`."""
