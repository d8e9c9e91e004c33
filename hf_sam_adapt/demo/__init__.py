"""The demo page, `hf-sam-adapt demo` and the Space alike: an engine that knows no Gradio, and a page around it.

Gradio is imported by `page` and what it imports: `segment_tab`, `route_tab`, `adapt_tab`, `api` and `theme`.
"""
