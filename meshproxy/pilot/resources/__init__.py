"""From a mesh to the resources of Envoy's API, for the proxies that a scope stands for."""
