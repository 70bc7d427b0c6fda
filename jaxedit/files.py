"""Files that are there whole or not at all."""

import os
import socket
from pathlib import Path


def whole(file: Path, content: str | bytes) -> Path:
    """Writes a file; one of that name is there, unharmed, until the new one is complete. Characters
    that no file can hold (half of a pair, as broken data has them) become '?'.
    """
    # every host of a run may write to one shared folder, hence a name of its own
    part = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    os.replace(part, file)
    return file
