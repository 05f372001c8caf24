"""The pytest plugin: options, cases, timing, and what a session keeps. `plugin` is the module that pytest loads."""
