"""What is unmounted is what lies below the state folder, newest first, and nothing beside it."""

from pathlib import Path

from teardown import mounts_below

MOUNTINFO = r"""22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw
40 22 0:40 / /state/cluster/kubelet/pods/a/volumes/token rw shared:2 - tmpfs tmpfs rw
41 22 0:41 / /state/cluster-of-another/kubelet rw shared:3 - tmpfs tmpfs rw
42 22 0:42 / /state/cluster/containerd/with\040space rw shared:4 - overlay overlay rw
43 22 0:43 / /state rw shared:5 - tmpfs tmpfs rw
"""


def test_only_mounts_below_the_folder_count_in_the_order_they_were_made() -> None:
    assert mounts_below(Path("/state/cluster"), MOUNTINFO) == [
        "/state/cluster/kubelet/pods/a/volumes/token",
        "/state/cluster/containerd/with space",
    ]
