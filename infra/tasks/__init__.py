"""Which task a call belongs to, decided alike by the gateway (live) and by discovery (at night)."""
