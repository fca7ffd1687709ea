"""The admin interface: what operators, dashboards and agents ask of a running proxy, in Envoy's formats."""
