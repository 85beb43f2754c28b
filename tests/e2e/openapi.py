"""The OpenAPI document of a server, held against its answers."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from e2e.server import Client


class Contract:
    """The document, and what is checked with it."""

    def __init__(self, http: Client) -> None:
        self.document = http.get_json("/openapi.json")

    def check(self, response: Any, method: str, path: str) -> None:
        """Validate an answer against what the document says of its route, status and content type."""
        responses = self.document["paths"][path][method]["responses"]
        assert str(response.status) in responses, f"{method} {path} does not document {response.status}"
        if response.status == 204:
            assert "content" not in responses["204"] and not response.data
            return
        content = responses[str(response.status)]["content"]
        media_type = response.headers["Content-Type"].partition(";")[0]
        assert media_type in content, f"{method} {path} {response.status} does not document {media_type}"
        if "json" in media_type and "ndjson" not in media_type:
            self.validate(content[media_type]["schema"], response.json())

    def validate(self, schema: dict[str, Any], document: Any) -> None:
        whole = schema | {"components": self.document["components"]}
        jsonschema_rs.Draft202012Validator(whole).validate(document)
        unknown = set(_undocumented(schema, document, self.document["components"]["schemas"]))
        assert not unknown, f"not documented: {unknown}"


def _undocumented(schema: dict[str, Any], document: Any, schemas: dict[str, Any]) -> Iterator[str]:
    """Name the members that an object has and its schema does not, where the schema does not say that it is open."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if isinstance(document, list) and "items" in schema:
        for item in document:
            yield from _undocumented(schema["items"], item, schemas)
    elif "anyOf" in schema:
        yield from min((list(_undocumented(option, document, schemas)) for option in schema["anyOf"]), key=len)
    elif isinstance(document, dict) and "properties" in schema and schema.get("additionalProperties") is not True:
        for name, value in document.items():
            if name in schema["properties"]:
                yield from _undocumented(schema["properties"][name], value, schemas)
            else:
                yield name
