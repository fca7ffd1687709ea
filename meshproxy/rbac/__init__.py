"""Who may do what: the policies of `envoy.config.rbac.v3`, compiled; for the HTTP and the network filter. Pure."""
