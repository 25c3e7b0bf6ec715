"""A stand-in for VirtualBox: a scripted VBoxManage with real processes behind it.

    python -m officegrid.testing.vboxmanage --modes FILE -- showvminfo GridMachine …

Outputs and exit codes are those recorded from VirtualBox 7.1.8 (a test replays the recording), and
from VirtualBox's documentation where the recording is silent. `install.StandIn` writes it into a
folder as a `VBoxManage` that any driver can call. Standard library only, so that it also runs
from a bare Windows Python.

    modes      what it should be and do: version, language, delays, faults (a JSON file)
    store      registry and session: what VirtualBox keeps in VirtualBox.xml and in VBoxSVC
    texts      the words and formats, by version and language
    verbs, power, appliance, snapshots   the sub-commands
    vbox_headless, vbox_svc   the processes; a VM's counter rises while it runs
    install    setting it up, and doing to VMs what happens to them in offices
"""
