"""A stand-in for Hyper-V: a `powershell.exe` with the Hyper-V cmdlets and real processes behind.

    python -m officegrid.testing.hyperv --modes FILE -- -NoProfile … -Command -

It reads and runs PowerShell: the part of the language that the driver's scripts use (parser,
evaluator), with the cmdlets and the parameters that Microsoft's reference documents. An unknown
cmdlet, parameter or member is an error as in PowerShell, so that a misspelt script fails here
too. Standard library only. It was built from documentation and has never been compared with a
real Hyper-V.

    modes      what it should be and do: edition, rights, delays, faults (a JSON file)
    values     PowerShell's values, objects and errors
    parser, evaluator, basics   the language and its general cmdlets
    store      the VMs, in a JSON file, as the service vmms would hold them
    cmdlets, power, disks   the Hyper-V cmdlets
    vmwp       the worker process of a VM; a VM's counter rises while it runs
    install    setting it up, and doing to VMs what happens to them in offices
"""
