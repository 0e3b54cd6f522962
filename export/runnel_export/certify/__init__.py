"""Compare the step model with the module. It never imports `lift`."""
