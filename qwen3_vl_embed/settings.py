"""What a client does when it is told nothing else, and the environment variables that tell it."""

URL = "QWEN3_VL_EMBED_URL"
DEFAULT_URL = "http://localhost:8001"
API_KEY = "QWEN3_VL_EMBED_API_KEY"  # not an option: on a command line anybody on the machine could read it
TIMEOUT_S = 300.0
RETRY_FOR_S = 120.0  # as long as a restart takes
BATCH = 64  # what one Triton batch holds: longer lists only wait
