# Metrics that differ from run to run.
NOT_REPEATED = ("time", "steps_per_second", "waited_for_data", "compiled_programs")
