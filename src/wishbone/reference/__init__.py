"""The reference policy: where its log-probabilities come from, and the store that keeps them."""
