"""The commands, one module each: arguments and help here, the work in the modules beside this package."""
