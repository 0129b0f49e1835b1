"""What the recipes' notebooks share: dull, hard or dangerous things, one room for each."""

import sys

# papermill, Prefect, EOPF, pystac and openapi-core import jsonschema, whose optional check of the "iri" format builds a
# grammar at import: 1.5 s of every process, for a check that none of them asks for. It does without if this is missing.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
