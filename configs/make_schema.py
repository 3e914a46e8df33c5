"""Write configs/schema.json and configs/sweeps/schema.json, by which editors check and complete YAML."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.editor_schema import (  # noqa: E402
    SCHEMA_PATH,
    SWEEP_SCHEMA_PATH,
    build_config_schema,
    build_sweep_schema,
    schema_text,
)
from defects.files import write_bytes  # noqa: E402

if __name__ == "__main__":
    for path, schema in ((SCHEMA_PATH, build_config_schema()), (SWEEP_SCHEMA_PATH, build_sweep_schema())):
        write_bytes(path, schema_text(schema).encode("utf-8"))
        print(f"wrote {path}")
