class ConfigError(ValueError):
    """Arguments, data or runs that cannot be worked with; the message names the culprit and says what to do."""
