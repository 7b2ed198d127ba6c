"""The Ray Serve application: assembly and generation for many users over HTTP. Start it with `serve.app:build`."""
