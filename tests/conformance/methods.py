"""Every method of lightningd's that the embedded node answers, so everything ODA may ask for."""

METHODS = frozenset(
    (
        *("getinfo", "newaddr", "listfunds", "withdraw", "feerates", "help", "stop"),
        *("signmessage", "checkmessage", "waitblockheight"),
        *("connect", "disconnect", "listpeers", "fundchannel", "listpeerchannels", "close"),
        *("listclosedchannels", "setchannel", "listforwards", "listhtlcs"),
        *("invoice", "delinvoice", "listinvoices", "waitinvoice", "waitanyinvoice", "decode"),
        *("xpay", "pay", "listpays", "listsendpays"),
        *("xkeysend", "keysend", "sendpay", "waitsendpay"),
        *("listnodes", "listchannels", "getroute", "getroutes"),
    )
)
