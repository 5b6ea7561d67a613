{{- define "resrank.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "resrank.selector" -}}
app.kubernetes.io/name: resrank
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "resrank.labels" -}}
{{ include "resrank.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "resrank.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A value as it was written. Helm reads numbers as floats, which it would write as 3.3554432e+07 from a million on. */}}
{{- define "resrank.text" -}}
{{- ternary . (toJson .) (kindIs "string" .) -}}
{{- end }}

{{/* How long a pod that ends is still sent requests. */}}
{{- define "resrank.leaveSeconds" -}}10{{- end }}

{{/* What contradicts itself is said here, before anything is made. */}}
{{- define "resrank.check" -}}
{{- if not .Values.repository.existingClaim }}
{{- fail "repository.existingClaim: name the claim with the folder that resrank export wrote" }}
{{- end }}
{{- if and (ne .Values.index.mode "empty") (not .Values.index.existingClaim) }}
{{- fail (printf "index.existingClaim: index.mode %s needs a claim" .Values.index.mode) }}
{{- end }}
{{- if and (eq .Values.index.mode "own") (or (gt (int .Values.replicas) 1) (ne .Values.autoscaling.kind "none")) }}
{{- fail "index.mode own: one process owns an index, so replicas must be 1 and autoscaling.kind none" }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.insecure) (not (and .Values.tls.secretName .Values.gateway.keys.secretName)) }}
{{- fail "gateway: give tls.secretName and gateway.keys.secretName, or gateway.insecure=true where an ingress has both" }}
{{- end }}
{{- if and .Values.grpc.expose (not .Values.grpc.insecure) (not .Values.tls.secretName) }}
{{- fail "grpc.expose: give tls.secretName, or grpc.insecure=true where a mesh encrypts" }}
{{- end }}
{{- if not (or .Values.gateway.enabled .Values.grpc.expose) }}
{{- fail "gateway.enabled, grpc.expose: nothing of this could be called" }}
{{- end }}
{{- if and .Values.metrics.podMonitor .Values.gateway.enabled .Values.gateway.keys.secretName (not .Values.gateway.keys.metricsSecretName) }}
{{- fail "gateway.keys.metricsSecretName: where the gateway wants keys, Prometheus needs one" }}
{{- end }}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) }}
{{- fail "autoscaling.maxReplicas: below minReplicas" }}
{{- end }}
{{- end }}

{{- define "resrank.grpcTls" -}}
{{- if and .Values.grpc.expose .Values.tls.secretName (not .Values.grpc.insecure) }}true{{ end }}
{{- end }}

{{- define "resrank.triton" -}}
name: triton
image: {{ .Values.images.triton | quote }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
{{- if .Values.gateway.enabled }}
restartPolicy: Always  # a sidecar to Kubernetes: started before the gateway, ended when that has drained
{{- end }}
args:
  - restricted
  - tritonserver
  - --model-repository=/repository
  - --model-control-mode=none
  - --disable-auto-complete-config
  - --strict-readiness=true
  - --exit-timeout-secs=20
  - --grpc-address={{ ternary "0.0.0.0" "127.0.0.1" .Values.grpc.expose }}
  - --grpc-port=8001
  {{- if include "resrank.grpcTls" . }}
  - --grpc-use-ssl=true
  - --grpc-use-ssl-mutual=true
  - --grpc-server-cert=/tls/tls.crt
  - --grpc-server-key=/tls/tls.key
  - --grpc-root-cert=/tls/ca.crt
  {{- end }}
  - --allow-http=false
  - --metrics-address={{ ternary "0.0.0.0" "127.0.0.1" .Values.metrics.expose }}
  - --metrics-port=8002
  - --backend-config=python,stub-timeout-seconds={{ include "resrank.text" .Values.triton.startupSeconds }}
  {{- with .Values.tracing }}
  {{- if .endpoint }}
  - --trace-config=mode=opentelemetry
  - --trace-config=level=TIMESTAMPS
  - --trace-config=rate={{ include "resrank.text" .sampleOneOf }}
  - --trace-config=count=-1
  - --trace-config=opentelemetry,url={{ trimSuffix "/" .endpoint }}/v1/traces
  - --trace-config=opentelemetry,resource=service.name=resrank-triton
  {{- end }}
  {{- end }}
  {{- range .Values.triton.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  - {name: RESRANK_RETRIEVAL_SOCKET, value: /run/resrank/retrieval.sock}
  {{- if include "resrank.grpcTls" . }}
  - {name: RESRANK_HEALTH_TLS, value: /tls}
  {{- end }}
  {{- include "resrank.tracing" . | nindent 2 }}
ports:
  - {name: grpc, containerPort: 8001}
  - {name: triton-metrics, containerPort: 8002}
# The program asks for readiness of all models and looks after their processes. A full queue is neither unready nor dead: what is
# turned away is told so at once, and more replicas are autoscaling's affair.
startupProbe:
  exec: {command: [healthcheck]}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: {{ div .Values.triton.startupSeconds 10 }}
readinessProbe:
  exec: {command: [healthcheck]}
  periodSeconds: 15
  timeoutSeconds: 10
  failureThreshold: 2
livenessProbe:
  exec: {command: [healthcheck]}
  periodSeconds: 30
  timeoutSeconds: 15
  failureThreshold: 3
lifecycle:
  {{- if .Values.gateway.enabled }}
  # Kubernetes runs the hooks of all containers at once: until the gateway has ended there may always be one more request.
  {{- $gateway := add (include "resrank.leaveSeconds" .) .Values.gateway.drainSeconds }}
  preStop: {exec: {command: [drain, {{ add $gateway 25 | quote }}, {{ $gateway | quote }}]}}
  {{- else }}
  preStop: {exec: {command: [drain, "25"]}}
  {{- end }}
resources: {{- toYaml .Values.triton.resources | nindent 2 }}
securityContext: {{- include "resrank.security" . | nindent 2 }}
volumeMounts:
  - {name: repository, mountPath: /repository, readOnly: true{{ with .Values.repository.subPath }}, subPath: {{ . }}{{ end }}}
  - {name: run, mountPath: /run/resrank}
  - {name: shm, mountPath: /dev/shm}
  - {name: tmp, mountPath: /tmp, subPath: triton}
  {{- if .Values.tls.secretName }}
  - {name: tls, mountPath: /tls, readOnly: true}
  {{- end }}
{{- end }}

{{- define "resrank.tracing" -}}
{{- if .Values.tracing.endpoint -}}
- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.tracing.endpoint | quote }}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "k8s.namespace.name=$(NAMESPACE),k8s.pod.name=$(POD)"}
{{- end }}
{{- end }}
