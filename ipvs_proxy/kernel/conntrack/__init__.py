"""Connection tracking: deletes the flows whose endpoint is gone."""
