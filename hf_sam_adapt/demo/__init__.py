"""The demo page, `hf-sam-adapt demo` and the Space alike: an engine that knows no Gradio, and a page around it.

`images`, `catalog`, `shelf`, `session`, `engine`, `pictures`, `pairs` and `job` are plain Python; `page`, `segment_tab`,
`route_tab`, `adapt_tab` and `api` are Gradio's.
"""
