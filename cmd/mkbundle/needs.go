package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// need is something of the distribution's, and the Debian package that has it.
type need struct {
	what     string
	packages []string
	there    func(context.Context) bool
}

// buildNeeds is for runc, which is linked with libseccomp, and for the pause
// program, which is C.
func buildNeeds() []need {
	return []need{
		program("gcc", "gcc", "libc6-dev"),
		program("pkg-config", "pkg-config"),
		{"libseccomp's header files", []string{"libseccomp-dev"}, func(ctx context.Context) bool {
			return exec.CommandContext(ctx, "pkg-config", "--exists", "libseccomp").Run() == nil
		}},
	}
}

// runtimeNeeds is for kube-proxy, flannel and portmap, which write their rules
// by the program nft.
func runtimeNeeds() []need { return []need{program("nft", "nftables")} }

// testNeeds is for the tests alone: keepalived is who our virtual router must
// get on with, and judges the files that we write for it as HAProxy and nginx do
// for theirs; of the static busybox they make an image with a shell.
func testNeeds() []need {
	return []need{
		program("keepalived", "keepalived"), program("busybox", "busybox-static"),
		program("haproxy", "haproxy"), program("curl", "curl"), // by which keepalived asks HAProxy
		program("nginx", "nginx"),
		{"nginx's module stream", []string{"libnginx-mod-stream"}, func(context.Context) bool {
			_, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so")
			return err == nil
		}},
	}
}

func program(name string, packages ...string) need {
	return need{"the program " + name, packages, func(context.Context) bool {
		_, err := exec.LookPath(name)
		return err == nil
	}}
}

// ensure installs what is missing, where it may; elsewhere it tells how.
func ensure(ctx context.Context, needs []need) error {
	missing := slices.DeleteFunc(needs, func(n need) bool { return n.there(ctx) })
	if len(missing) == 0 {
		return nil
	}
	var what, packages []string
	for _, n := range missing {
		what = append(what, n.what)
		packages = append(packages, n.packages...)
	}
	install := "apt-get install -y --no-install-recommends " + strings.Join(packages, " ")
	_, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("missing: %s. On Debian, as root: %s", strings.Join(what, ", "), install)
	}
	say("installing %s", strings.Join(packages, " "))
	if err := aptGet(ctx, "update"); err != nil {
		return err
	}
	if err := withoutServices(servicePolicy, func() error { return aptGet(ctx, strings.Fields(install)[1:]...) }); err != nil {
		return err
	}
	return disableServices(ctx, packages)
}

// disableServices keeps what was installed for its program alone from being started
// with this machine: Debian enables each service as it installs it.
func disableServices(ctx context.Context, packages []string) error {
	var services []string
	for _, name := range []string{"haproxy", "keepalived", "nginx"} {
		if slices.Contains(packages, name) {
			services = append(services, name)
		}
	}
	if _, err := exec.LookPath("systemctl"); err != nil || services == nil {
		return nil //nolint:nilerr // nobody starts services here
	}
	if out, err := exec.CommandContext(ctx, "systemctl", append([]string{"disable"}, services...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot disable the services %s, which were installed for their programs: %w: %s", strings.Join(services, ", "), err, bytes.TrimSpace(out))
	}
	return nil
}

// servicePolicy is the program that Debian's packages ask before they start
// their services.
const servicePolicy = "/usr/sbin/policy-rc.d"

// withoutServices lets do install packages without their services being started:
// nginx would take port 80 of this machine. A policy that is there is left alone,
// unless it is ours of a run that was interrupted.
func withoutServices(policy string, do func() error) error {
	const forbid = "#!/bin/sh\n# mkbundle installs packages\nexit 101\n"
	if have, err := os.ReadFile(policy); err == nil && string(have) != forbid {
		return do()
	}
	if err := os.WriteFile(policy, []byte(forbid), 0o755); err != nil {
		return fmt.Errorf("cannot keep services from being started: %w", err)
	}
	return errors.Join(do(), os.Remove(policy))
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("cannot run apt-get %s: %w", strings.Join(args, " "), err), errors.New(string(out)))
	}
	return nil
}
