"""The playground: a local page to draw digits, compare the base with its adapters, and teach them one's own hand.

`starlette` and `uvicorn`, the extra `play`, are imported by what serves and by nothing else.
"""
