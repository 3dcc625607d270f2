"""Who answers: registry, rollout, engines, gateway."""
