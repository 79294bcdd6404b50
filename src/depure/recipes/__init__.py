"""Published settings by name, for `--config`: YAML files of command-line options."""
