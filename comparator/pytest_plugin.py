"""Empty: the plugin is ``pytest_tensortap``. For environments whose entry point was made before; ``make`` renews it."""
