package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// The helper is this test binary with these variables set. It runs one check
// in namespaces of its own, so that nothing of the host's can be touched, and
// never the tests: it could not start itself again.
const (
	helperCheck = "KUORUM_HOST_TEST_CHECK"
	helperDir   = "KUORUM_HOST_TEST_DIR"
	helperHost  = "KUORUM_HOST_TEST_NET" // the network namespace it must not be in
)

func TestMain(m *testing.M) {
	if name := os.Getenv(helperCheck); name != "" {
		runtime.LockOSThread()
		os.Exit(runCheck(name))
	}
	os.Exit(m.Run())
}

func runCheck(name string) int {
	checks := map[string]func() error{"disk": checkBadDisk, "switch": checkSwitch, "idle": checkIdle}
	own, err := os.Readlink("/proc/self/ns/net")
	if err == nil && own == os.Getenv(helperHost) {
		err = errors.New("this is the host's network")
	}
	if err == nil {
		err = checks[name]()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// helper is a command that runs a check in new network and mount namespaces.
func helper(check, dir, hostNet string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperCheck+"="+check, helperDir+"="+dir, helperHost+"="+hostNet)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func inNamespace(t *testing.T, check, dir string) {
	t.Helper()
	hostNet, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	defer runtime.UnlockOSThread()
	if out, err := helper(check, dir, hostNet).CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func checkBadDisk() error {
	dir := os.Getenv(helperDir)
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("tiny", dir, "tmpfs", 0, "size=64k"),
	); err != nil {
		return err
	}
	path := filepath.Join(dir, "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		return err
	}
	if err := WriteFile(path, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("on a full disk: %w", err)
	}
	if err := stillOld(dir); err != nil {
		return err
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := WriteFile(path, []byte("new"), 0o600); !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("on a read-only disk: %w", err)
	}
	return stillOld(dir)
}

func stillOld(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil || string(data) != "old" {
		return fmt.Errorf("the old content is %q, %w", data, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		return fmt.Errorf("something was left: %v, %w", entries, err)
	}
	return nil
}

func TestSwitchAndMachines(t *testing.T) { inNamespace(t, "switch", t.TempDir()) }

// checkIdle is the network of a machine: it says so and waits for its end.
func checkIdle() error {
	if _, err := fmt.Println("up"); err != nil {
		return err
	}
	_, err := os.Stdin.Read(make([]byte, 1))
	if err != nil && err.Error() != "EOF" {
		return err
	}
	return nil
}

// checkSwitch makes a switch in this fresh namespace, and a machine behind it.
func checkSwitch() error {
	address := netip.MustParsePrefix("198.18.7.1/24")
	if err := MakeSwitch(address, 1400); err != nil {
		return err
	}
	if err := wantAddress(bridgeName, address); err != nil {
		return err
	}
	if _, err := net.Dial("tcp", "192.0.2.1:80"); !errors.Is(err, syscall.EHOSTUNREACH) {
		return fmt.Errorf("the way out is not closed at once: %w", err)
	}
	if err := AddLoopbackAddress(netip.MustParseAddr("169.254.20.10")); err != nil {
		return err
	}
	if err := AddLoopbackAddress(netip.MustParseAddr("169.254.20.10")); err != nil {
		return fmt.Errorf("an address that is there: %w", err)
	}
	if err := wantAddress("lo", netip.MustParsePrefix("169.254.20.10/32")); err != nil {
		return err
	}
	for _, backend := range []string{"vxlan", "host-gw"} {
		if err := ProbeLinks(backend); err != nil {
			return err
		}
	}
	if _, err := netlink.LinkByName("probe0"); err == nil {
		return errors.New("the probe link was left")
	}
	return plugMachine()
}

func plugMachine() error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	machine := helper("idle", "", own)
	in, err := machine.StdinPipe()
	if err != nil {
		return err
	}
	out, err := machine.StdoutPipe()
	if err != nil {
		return err
	}
	if err := machine.Start(); err != nil {
		return err
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		return err
	}
	mac := net.HardwareAddr{0x02, 0x6b, 198, 18, 7, 11}
	for range 2 { // a cable left there is replaced
		if err := Plug("m0", machine.Process.Pid, mac, 1400); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName("m0")
	if err != nil {
		return err
	}
	if bridge, err := netlink.LinkByName(bridgeName); err != nil || link.Attrs().MasterIndex != bridge.Attrs().Index {
		return fmt.Errorf("the cable is not in the switch: %w", err)
	}
	if err := insideMachine(machine.Process.Pid, mac); err != nil {
		return err
	}
	return errors.Join(in.Close(), machine.Wait())
}

// insideMachine configures the machine's end in its own namespace. The caller
// is locked to its thread, which stays there: nothing follows but the end.
func insideMachine(pid int, mac net.HardwareAddr) error {
	if err := enter(pid, []string{"net"}); err != nil {
		return err
	}
	address := netip.MustParsePrefix("198.18.7.11/24")
	for range 2 {
		if err := ConfigureMachine(address, netip.MustParseAddr("198.18.7.1")); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if link.Attrs().HardwareAddr.String() != mac.String() || link.Attrs().MTU != 1400 {
		return fmt.Errorf("eth0 has %s and MTU %d", link.Attrs().HardwareAddr, link.Attrs().MTU)
	}
	if err := wantAddress("eth0", address); err != nil {
		return err
	}
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 1))
	if err != nil || len(routes) != 1 || routes[0].Gw.String() != "198.18.7.1" {
		return fmt.Errorf("the way out is %v, %w", routes, err)
	}
	return nil
}

func wantAddress(name string, want netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.IPNet.String() == want.String() && link.Attrs().Flags&net.FlagUp != 0 {
			return nil
		}
	}
	return fmt.Errorf("%s is not up with %s: %v", name, want, list)
}

// TestLinksNameWhatIsMissing asks for links that do not exist; nothing of the
// host is changed by that.
func TestLinksNameWhatIsMissing(t *testing.T) {
	name := "kt" + strconv.Itoa(os.Getpid()%100000)
	if err := LinkUp(name); err == nil || !strings.Contains(err.Error(), "cannot find link "+name) {
		t.Errorf("got %v", err)
	}
}
