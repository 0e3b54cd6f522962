"""From a module to a step graph. It never imports `certify`."""
