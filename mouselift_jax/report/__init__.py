"""Artefacts for people: pictures, videos, tables, the report, the viewer."""
