"""Publishing runs, adapters, pools, model folders and Spaces."""
