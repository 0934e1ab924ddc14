"""What a person touches: commands, configuration files, reports. The only reader of argv and environment."""
