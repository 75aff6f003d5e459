package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
)

// pollAPI is how often a waiting `up` looks at the API.
const pollAPI = 100 * time.Millisecond

func (l *Lab) client() (*typed.CoreV1Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("cannot use the lab's kubeconfig: %w", err)
	}
	config.Timeout = 5 * time.Second
	config.QPS = -1 // one caller that polls; the client's own limit would only delay it
	client, err := typed.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("cannot use the lab's kubeconfig: %w", err)
	}
	return client, nil
}

func (u *Up) waitAPI(ctx context.Context) error {
	client, err := u.lab.client()
	if err != nil {
		return err
	}
	return u.lab.late(ctx, "the API of lab "+u.lab.Name+" does not answer", poll(ctx, pollAPI, func() error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}))
}

func (u *Up) waitNodes(ctx context.Context) error {
	client, err := u.lab.client()
	if err != nil {
		return err
	}
	return u.lab.late(ctx, "not every node is Ready", poll(ctx, pollAPI, func() error {
		list, err := client.Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		return missing(u.lab.Nodes(), list.Items)
	}))
}

// missing is nil when every node of spec is Ready, else the names and reasons
// of those that are not.
func missing(spec *cluster.Spec, nodes []corev1.Node) error {
	reasons := map[string]string{}
	for _, n := range nodes {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				reasons[n.Name] = "ready"
			} else if c.Type == corev1.NodeReady {
				reasons[n.Name] = c.Message
			}
		}
	}
	var errs []error
	for _, n := range spec.Spec.Nodes {
		switch reason, ok := reasons[n.Name]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s has not registered", n.Name))
		case reason != "ready":
			errs = append(errs, fmt.Errorf("%s: %s", n.Name, reason))
		}
	}
	return errors.Join(errs...)
}

// firstPod proves that a pod can run. It is in kube-system, where no quota or
// security level of a user's can be in its way, and is removed again.
func firstPod() *corev1.Pod {
	no := false
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "kuorum-first-pod", Namespace: metav1.NamespaceSystem},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  &no,
			TerminationGracePeriodSeconds: &zero,
			RestartPolicy:                 corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "pause", Image: component.PauseImage, ImagePullPolicy: corev1.PullNever,
			}},
		},
	}
}

func (u *Up) waitPod(ctx context.Context) error {
	client, err := u.lab.client()
	if err != nil {
		return err
	}
	pods := client.Pods(metav1.NamespaceSystem)
	remove := func(ctx context.Context) error {
		zero := int64(0)
		err := pods.Delete(ctx, firstPod().Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	err = poll(ctx, pollAPI, func() error {
		pod, err := pods.Get(ctx, firstPod().Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			pod, err = pods.Create(ctx, firstPod(), metav1.CreateOptions{})
		}
		if err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("the pod %s is %s", pod.Name, pod.Status.Phase)
		}
		return nil
	})
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err != nil {
		_ = remove(cleanup) // what is reported is why it does not run
		return u.lab.late(ctx, "a first pod does not run", err)
	}
	return remove(cleanup)
}

// late turns the end of a wait into a problem that names the cause: the
// deadline, or ^C, and what was missing then.
func (l *Lab) late(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return &cluster.Problem{
			What: what, Err: err, Exit: cluster.ExitTimeout,
			Do: fmt.Sprintf("kuorum list %s     (shows what each machine waits for)\n      kuorum logs NODE COMPONENT", l.Name),
		}
	}
	return err
}

// WaitReady blocks until every component of the machine is ready.
func (l *Lab) WaitReady(ctx context.Context, name string) error {
	err := poll(ctx, 250*time.Millisecond, func() error {
		status, err := l.Status(ctx)
		if err != nil {
			return err
		}
		m, err := status.Machine(name)
		if err != nil {
			return err
		}
		return unready(m)
	})
	return l.late(ctx, "machine "+name+" is not ready", err)
}

func unready(m MachineStatus) error {
	if m.Power != PowerOn {
		return fmt.Errorf("%s is off", m.Name)
	}
	if m.Agent == nil {
		return fmt.Errorf("the agent of %s does not answer: %s", m.Name, m.Error)
	}
	var errs []error
	for _, c := range m.Agent.Components {
		if c.Phase != "ready" {
			errs = append(errs, fmt.Errorf("%s is %s %s", c.Name, c.Phase, c.Message))
		}
	}
	return errors.Join(errs...)
}
